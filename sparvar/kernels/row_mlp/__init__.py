"""Two linear layers with an activation between them, over chunks of rows."""
