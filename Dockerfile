# Two images: `producer` without torch, for all but workers, and `worker`, which has everything.
FROM python:3.11-slim AS producer
WORKDIR /app
# The packages apart from the code: a change to it does not install them again.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN pip install --no-cache-dir --upgrade "pip>=25.1" \
 && pip install --no-cache-dir --constraint constraints.txt --group producer
COPY jobs jobs
COPY producer producer
COPY configs configs
RUN mkdir worker && pip install --no-cache-dir --no-deps .
# Nobody in particular. Named volumes take over who owns these folders.
RUN useradd --uid 10001 --create-home imagemill \
 && install --directory --owner imagemill /home/imagemill/.cache /keys
USER 10001
ENTRYPOINT []
CMD ["imagemill", "serve", "--host", "0.0.0.0"]

FROM python:3.11-slim AS worker
# What torch.compile builds its kernels with.
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc g++ libc6-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir jobs producer worker configs \
 && pip install --no-cache-dir --constraint constraints.txt '.[traces]' \
 && pip uninstall --yes imagemill
COPY jobs jobs
COPY producer producer
COPY worker worker
COPY configs configs
RUN pip install --no-cache-dir --no-deps .
RUN useradd --uid 10001 --create-home imagemill \
 && install --directory --owner imagemill /home/imagemill/.cache /keys
USER 10001
ENTRYPOINT []
CMD ["imagemill", "worker"]
