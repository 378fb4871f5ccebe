"""The scripts that made the bundled example models and scenes. Nothing else imports them."""
