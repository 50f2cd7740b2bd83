"""What is pasted on which image: planning, background pool, loading of foregrounds, class mapping."""
