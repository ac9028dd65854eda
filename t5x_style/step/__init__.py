"""The train step as a program: ground of training and of compiling."""
