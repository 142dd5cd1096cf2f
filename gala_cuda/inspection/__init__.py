"""What a network attends to, as pictures: PNG sheets and an HTML page."""
