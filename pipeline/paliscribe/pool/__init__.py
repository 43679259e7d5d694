"""The replicas: deployed, found, called and scaled; and the Ray cluster that they run on."""
