"""GLASS: anomalies by gradient ascent in features and by local synthesis in images."""
