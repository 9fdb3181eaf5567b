"""Training: `fit` reads a result, resumes or trains; `loop` is the one loop.

A run on several GPUs is `devices`, a step replayed as a CUDA graph is `graphs`. From below come
images, networks, and the metrics of scores; import nothing above.
"""
