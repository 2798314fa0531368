"""``make images``: build both images, run ``docker-compose.yml``, check what it does. ``__main__`` tells the story."""
