"""Images: decoding, resizing, augmentation, and the `Inputs` built of them (`inputs.Images`)."""
