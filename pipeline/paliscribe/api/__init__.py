"""What `import paliscribe` offers: annotate, ask and load. Its public names are those of `paliscribe`."""
