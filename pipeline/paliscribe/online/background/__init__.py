"""Background jobs of an endpoint: files, batches and jobs over HTTP, and the drivers that run them."""
