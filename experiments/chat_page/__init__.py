"""The page of `chat.py --web`: a server for this machine alone, and one file of HTML, CSS and JavaScript."""
