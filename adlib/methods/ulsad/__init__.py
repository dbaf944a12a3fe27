"""ULSAD: logical and structural anomalies from a local and a global branch."""
