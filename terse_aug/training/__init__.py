"""What is learned while a detector trains: feedback, policy updates, discriminator, metrics, robustness."""
