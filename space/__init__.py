"""What the page in app.py is made of: reading uploads, and handlers that know nothing of layout."""
