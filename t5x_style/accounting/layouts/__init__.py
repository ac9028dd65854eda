"""What one step costs under a layout: bytes, seconds, and the meshes that fit."""
