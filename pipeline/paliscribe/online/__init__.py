"""The HTTP endpoint in front of the replicas: live requests and background jobs."""
