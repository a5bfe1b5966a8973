"""`kronos`: commands, options, screens. Nothing else prints."""
