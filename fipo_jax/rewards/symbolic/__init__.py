"""Mathematics as models write it, read and compared: latex -> dress -> formula -> reading, then equality by value."""
