"""What the methods are made of: settings, times, losses and student forms that several of them share."""
