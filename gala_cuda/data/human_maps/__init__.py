"""ClickMe's human maps: files of every published format, read, checked, converted and transformed."""
