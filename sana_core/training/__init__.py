"""Training: flow matching, self-forcing rollouts, Cycle-Reverse Regularization, distribution matching, manifests."""
