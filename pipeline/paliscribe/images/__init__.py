"""Images: fetching, decoding, and SSRF protection for untrusted addresses."""
