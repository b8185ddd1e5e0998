# The page on a server of your own; docs/hosting.md has the commands.
#
# Build arguments:
#   TORCH_OPTIONS   pip's options for torch alone. pip's default torch brings several gigabytes of CUDA libraries on
#                   x86-64; without a GPU, give the --index-url that pytorch.org shows for its CPU build.
#   PIP_OPTIONS     pip's options for everything, such as --index-url for a mirror.
#   EXTRA_PACKAGES  Debian packages to add; "gcc libc6-dev" for a GPU: Triton compiles its launchers with them.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

ARG EXTRA_PACKAGES=""
RUN if [ -n "$EXTRA_PACKAGES" ]; then \
        apt-get update && apt-get install -y --no-install-recommends $EXTRA_PACKAGES && rm -rf /var/lib/apt/lists/*; \
    fi

# Checkpoints are downloaded here; a volume keeps them when the container goes.
RUN useradd --create-home --uid 1000 visitor && install -d -o visitor -g visitor /models
ENV HF_HOME=/models
VOLUME /models

WORKDIR /srv
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# Requirements change rarely: they come before the code, and torch, the largest, before the others.
ARG PIP_OPTIONS=""
ARG TORCH_OPTIONS=""
COPY requirements.txt ./
RUN pip install $PIP_OPTIONS $TORCH_OPTIONS "$(grep '^torch' requirements.txt)"
RUN pip install $PIP_OPTIONS -r requirements.txt

COPY LICENSE README.md CONTRIBUTING.md CHANGELOG.md app.py ./
COPY docs docs
COPY assets assets
COPY prompts prompts
COPY sparsed sparsed
COPY app app
RUN python -m compileall -q app.py app sparsed

USER visitor
ENV GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=7860 PYTHONUNBUFFERED=1
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=2m --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['GRADIO_SERVER_PORT'] + '/healthz', timeout=4)"]
STOPSIGNAL SIGTERM
CMD ["python", "app.py"]
