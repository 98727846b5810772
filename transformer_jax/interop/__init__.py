"""Import weights from other systems, and export models to them."""
