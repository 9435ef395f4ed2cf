/* The least filesystem that libfuse can serve, in one thread: what ktaskfs's own files are compared with.
 *
 * MOUNTPOINT BYTES FILES: the files are `status` and file1, file2 …, alike. As ktaskfs does, it serves them with
 * direct_io, says that they have no length, and lets the kernel keep names and attributes. Ends with the unmount. */
#define FUSE_USE_VERSION 35
#include <errno.h>
#include <fuse_lowlevel.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TIMEOUT 300.0
#define FIRST (FUSE_ROOT_ID + 1) /* the inode of `status`; the others follow */

static char *content;
static size_t content_size, files;

static const char *name_of(size_t index, char *room, size_t size)
{
    if (!index)
        return "status";
    snprintf(room, size, "file%zu", index);
    return room;
}

static int fill(fuse_ino_t ino, struct stat *st)
{
    if (ino != FUSE_ROOT_ID && ino - FIRST >= files)
        return -1;
    memset(st, 0, sizeof *st);
    st->st_ino = ino;
    st->st_mode = ino == FUSE_ROOT_ID ? S_IFDIR | 0755 : S_IFREG | 0444;
    st->st_nlink = 1;
    return 0;
}

static void fs_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct fuse_entry_param entry = {.attr_timeout = TIMEOUT, .entry_timeout = TIMEOUT};
    size_t index = strcmp(name, "status") ? strtoull(name + strnlen(name, strlen("file")), NULL, 10) : 0;
    char room[32];
    if (parent != FUSE_ROOT_ID || index >= files || strcmp(name, name_of(index, room, sizeof room))) {
        fuse_reply_err(req, ENOENT);
        return;
    }
    entry.ino = FIRST + index;
    fill(entry.ino, &entry.attr);
    fuse_reply_entry(req, &entry);
}

static void fs_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct stat st;
    (void)fi;
    if (fill(ino, &st))
        fuse_reply_err(req, ENOENT);
    else
        fuse_reply_attr(req, &st, TIMEOUT);
}

static void fs_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    fi->direct_io = 1;
    fuse_reply_open(req, fi);
}

static void reply_part(fuse_req_t req, const char *data, size_t length, size_t size, off_t at)
{
    size_t left = (size_t)at < length ? length - at : 0;
    fuse_reply_buf(req, left ? data + at : NULL, left < size ? left : size);
}

static void fs_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t at, struct fuse_file_info *fi)
{
    (void)ino, (void)fi;
    reply_part(req, content, content_size, size, at);
}

static void fs_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t at, struct fuse_file_info *fi)
{
    char *buffer = malloc(size), room[32];
    size_t used = 0;
    (void)ino, (void)fi;
    if (!buffer) {
        fuse_reply_err(req, ENOMEM);
        return;
    }
    for (size_t index = at; index < files + 2; index++) {
        struct stat st;
        const char *name = index == 0 ? "." : index == 1 ? ".." : name_of(index - 2, room, sizeof room);
        fill(index < 2 ? FUSE_ROOT_ID : FIRST + index - 2, &st);
        size_t length = fuse_add_direntry(req, buffer + used, size - used, name, &st, index + 1);
        if (length > size - used)
            break;
        used += length;
    }
    fuse_reply_buf(req, buffer, used);
    free(buffer);
}

static const struct fuse_lowlevel_ops operations = {
    .lookup = fs_lookup, .getattr = fs_getattr, .open = fs_open, .read = fs_read, .readdir = fs_readdir};

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "usage: %s MOUNTPOINT BYTES FILES\n", argv[0]);
        return 2;
    }
    content_size = strtoull(argv[2], NULL, 0);
    files = strtoull(argv[3], NULL, 0);
    content = malloc(content_size + 1);
    if (!content)
        return 1;
    for (size_t i = 0; i < content_size; i++)
        content[i] = "Key:\tvalue\n"[i % 11];

    char *options[] = {argv[0], "-o", "fsname=minimal,default_permissions", NULL};
    struct fuse_args args = FUSE_ARGS_INIT(3, options);
    struct fuse_session *session = fuse_session_new(&args, &operations, sizeof operations, NULL);
    if (!session || fuse_session_mount(session, argv[1]))
        return 1;
    int status = fuse_session_loop(session);
    fuse_session_unmount(session);
    fuse_session_destroy(session);
    return status < 0;
}
