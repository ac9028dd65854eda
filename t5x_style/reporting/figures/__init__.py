"""Charts, and the scaling figure of a plan, as SVG."""
