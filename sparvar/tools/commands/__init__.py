"""The commands of `sparvar`, one module each."""
