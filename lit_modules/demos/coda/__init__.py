"""Demo of CoDA on drawn species."""
