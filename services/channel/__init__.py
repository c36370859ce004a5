"""The channel service: a transparent box in the air that fades and adds noise."""
