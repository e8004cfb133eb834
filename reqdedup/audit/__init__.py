"""`reqdedup audit`: what a table that a team already has would save, and what to set."""

from reqdedup.audit.audit import AuditProgress, audit_table
from reqdedup.audit.render import render
from reqdedup.audit.report import AuditReport

__all__ = ["AuditProgress", "AuditReport", "audit_table", "render"]
