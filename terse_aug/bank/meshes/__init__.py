"""3-D models: reading them, the views of them, and drawing a view. trimesh and VTK are imported where they are used."""
