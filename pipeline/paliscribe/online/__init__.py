"""The life of an HTTP request: the endpoint in front of the replicas."""
