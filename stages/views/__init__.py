"""Views: how boxes and colours are drawn, rendered and checked, and images decoded ahead."""
