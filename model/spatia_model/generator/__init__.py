"""The generator: text, video autoencoder, flow-matching transformer with parallel control, and its sampler."""
