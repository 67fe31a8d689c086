"""Text out of HTML, PDF and DOCX, in a process of its own with limits on what it may take."""
