"""Few-shot patch similarity, contrastive learning with clustering, and both in a unified model."""
