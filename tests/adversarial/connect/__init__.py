"""CONNECT requests and answers, and what their headers claim."""
