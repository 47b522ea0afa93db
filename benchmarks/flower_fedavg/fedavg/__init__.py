"""FedAvg of an adapter in Flower."""
