"""The server: processes, the application, and models that change while it runs."""
