"""Charts and the scaling figure, as SVG."""
