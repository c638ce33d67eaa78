FROM python:3.11-slim
# What torch.compile builds its kernels with.
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc g++ libc6-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /app
# The packages apart from the code: a change to it does not install torch again.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir jobs producer worker configs \
 && pip install --no-cache-dir --constraint constraints.txt . \
 && pip uninstall --yes imagemill
COPY jobs jobs
COPY producer producer
COPY worker worker
COPY configs configs
RUN pip install --no-cache-dir --no-deps .
# Nobody in particular. Named volumes take over who owns these folders.
RUN useradd --uid 10001 --create-home imagemill \
 && install --directory --owner imagemill /home/imagemill/.cache /keys
USER 10001
ENTRYPOINT []
CMD ["imagemill", "worker"]
