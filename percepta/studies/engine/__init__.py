"""What every study needs: jobs and their places on disk, running them, and the table that comes out."""
