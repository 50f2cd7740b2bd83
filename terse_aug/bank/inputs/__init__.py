"""What readers share: image decoding, masks and RLE, COCO JSON, repair of messy input, matching of file names."""
