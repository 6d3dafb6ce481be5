"""The way of a batch from the loader to the step: where its time goes, what to change, and when it never ends."""
