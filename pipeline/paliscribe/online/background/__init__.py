"""Files, batches and jobs over HTTP, and what drives them."""
