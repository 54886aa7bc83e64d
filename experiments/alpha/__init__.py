"""What Keel's alpha and its other choices are worth."""
