//! Images of every kind that people run.

use super::{Layer, Packing, Probe, Recipe};

/// Busybox with all its applets, in the directory of a new layer.
macro_rules! busybox {
    ($rest:expr) => {
        concat!(
            "mkdir -p bin etc tmp proc sys dev root; chmod 1777 tmp; cp /bin/busybox bin/\n",
            "for name in $(bin/busybox --list); do [ $name = busybox ] || ln -s busybox bin/$name; done\n",
            "echo 'root:x:0:0:root:/root:/bin/sh' >etc/passwd; echo 'web:x:33:33:web:/srv:/bin/sh' >>etc/passwd\n",
            "printf 'root:x:0:\\nweb:x:33:\\nssl:x:50:web\\ntape:x:26:web\\n' >etc/group\n",
            $rest
        )
    };
}

/// Who it is, where it is and what it was given.
const SELF: Probe =
    Probe::Run { options: &[], words: &["sh", "-c", "id -u; id -g; id -G; id -un; pwd; umask; env | sort"] };
const PLAIN: &str = r#"{"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["sh"]}"#;

const fn run(words: &'static [&'static str]) -> Probe {
    Probe::Run { options: &[], words }
}

/// Those that are made in a second or two.
pub const SMALL: [Recipe; 4] = [BUSYBOX, SCRATCH, VOLUME, LINKS];

const BUSYBOX: Recipe = Recipe::new(
    "busybox",
    "one static program with a hundred names",
    &[Layer::new(busybox!(""))],
    r#"{"Env": ["PATH=/bin"], "Cmd": ["sh", "-c", "echo hello"]}"#,
    &[
        run(&[]),
        SELF,
        run(&["sh", "-c", "exit 42"]),
        run(&["false"]),
        run(&["no-such-program"]),
        run(&["/etc/passwd"]),
        Probe::Run {
            options: &["-u", "1234:99", "-w", "/etc", "-e", "A=b c"],
            words: &["sh", "-c", "id -u; id -g; pwd; echo $A"],
        },
        run(&[
            "sh",
            "-c",
            "stat -c '%n %a %F' /tmp /proc /sys /dev /dev/null /dev/shm; ls /dev | grep -vE 'console|core'",
        ]),
        run(&["sh", "-c", "kill -KILL $$"]),
    ],
);

/// Says what a program is given; there is nothing else in its image.
const PROGRAM: &str = r#"
cat >../say.c <<'END'
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
extern char **environ;
static int order(const void *left, const void *right) { return strcmp(*(char **)left, *(char **)right); }
int main(int count, char **words) {
    char place[4096];
    for (int i = 0; i < count; i++) printf("word %s\n", words[i]);
    printf("in %s as %d:%d\n", getcwd(place, sizeof place), (int)getuid(), (int)getgid());
    size_t variables = 0;
    while (environ[variables]) variables++;
    qsort(environ, variables, sizeof *environ, order);
    for (size_t i = 0; i < variables; i++) puts(environ[i]);
    return 7;
}
END
gcc -static -O1 -s -o say ../say.c
"#;

const SCRATCH: Recipe = Recipe::new(
    "scratch",
    "one static program and nothing else: no users, no shell, no directories",
    &[Layer::new(PROGRAM)],
    r#"{"Entrypoint": ["/say"], "Cmd": ["by", "itself"]}"#,
    &[
        run(&[]),
        run(&["with", "two words"]),
        Probe::Run { options: &["-u", "5:6", "-e", "B=c"], words: &[] },
        Probe::Run { options: &["--entrypoint", "/say"], words: &[] },
    ],
);

const VOLUME: Recipe = Recipe::new(
    "user-volume",
    "USER by name with groups of its own, VOLUME over content of the image",
    &[Layer::new(busybox!(
        "mkdir -p srv data/sub; echo one >data/file; echo two >data/sub/deep; ln -s file data/link\n\
         chown -R 33:50 data; chmod 2770 data/sub; chmod 600 data/file; chown -R 33:33 srv; chmod 700 srv"
    ))],
    r#"{"Env": ["PATH=/bin"], "User": "web", "WorkingDir": "/srv", "Volumes": {"/data": {}, "/made/by/nobody": {}}, "Cmd": ["sh"]}"#,
    &[
        SELF,
        run(&["sh", "-c", "cd /data; find . | sort | xargs stat -c '%n %a %u:%g %F'; cat file sub/deep link"]),
        run(&["sh", "-c", "echo more >>/data/file && cat /data/file; ls /made/by/nobody"]),
        run(&["sh", "-c", "echo x >>/etc/passwd"]),
        Probe::Run { options: &["-u", "web:ssl"], words: &["id"] },
        Probe::Run { options: &["-u", "0"], words: &["id"] },
    ],
);

const LINKS: Recipe = Recipe::new(
    "links",
    "hard links within and across layers, whiteouts, opaque directories, capabilities of a file",
    &[
        Layer::new(busybox!(
            "mkdir -p a b/c gone opaque/sub kept; echo one >a/one; ln a/one a/uno; echo two >a/two; echo x >gone/x\n\
             echo y >opaque/y; echo z >opaque/sub/z; echo k >kept/k; echo c >b/c/file; ln -s ../a/one b/link\n\
             cp bin/busybox kept/tool; setcap cap_net_raw+ep kept/tool; chmod 4711 kept/tool"
        )),
        // Both are the file of the layer below.
        Layer::new(
            "mkdir -p a b; echo one >a/one; ln a/one a/eins; ln a/one b/ichi; echo ./a/one >../without\n\
             touch .wh.gone; mkdir opaque; touch opaque/.wh..wh..opq; echo new >opaque/new; mkdir -p b; touch b/.wh.c",
        ),
        Layer::new(
            "mkdir -p gone b/c; echo again >gone/again; echo other >b/c/other; mkdir -p a; touch a/.wh.uno\n\
             mkdir -p opaque; echo newer >opaque/newer; touch .wh.never-there",
        ),
    ],
    r#"{"Env": ["PATH=/bin"], "Cmd": ["sh"]}"#,
    &[run(&[
        "sh",
        "-c",
        "find /a /b /gone /opaque /kept | sort | xargs stat -c '%n %h %a %s %F'; cat /a/eins /b/ichi /b/c/other; \
         [ /a/eins -ef /b/ichi ] && echo the same; echo changed >>/a/eins; cat /b/ichi",
    ])],
);

/// Twenty images.
pub const ALL: [Recipe; 20] = [
    BUSYBOX,
    SCRATCH,
    VOLUME,
    LINKS,
    Recipe::new(
        "go",
        "a static Go program that serves HTTP to itself",
        &[Layer::new(
            r#"
            (mkdir ../go; cd ../go; apt-get download -q golang-1.19-go golang-1.19-src >/dev/null 2>&1
             for archive in *.deb; do dpkg -x $archive .; done
             cp -r usr/share/go-1.19/. usr/lib/go-1.19/ 2>/dev/null || true
             cat >serve.go <<'END'
package main

import (
    "fmt"
    "io"
    "net"
    "net/http"
    "os"
    "os/user"
)

func main() {
    listener, err := net.Listen("tcp", "127.0.0.1:0")
    if err != nil {
        fmt.Println(err)
        os.Exit(1)
    }
    go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello ", r.URL.Path) }))
    answer, err := http.Get("http://" + listener.Addr().String() + "/go")
    if err != nil {
        fmt.Println(err)
        os.Exit(1)
    }
    text, _ := io.ReadAll(answer.Body)
    who, err := user.Current()
    place, _ := os.Getwd()
    fmt.Println(string(text), who.Uid, err, place, len(os.Args), os.TempDir())
    os.Exit(3)
}
END
             HOME=$PWD GOCACHE=$PWD/cache GOFLAGS=-mod=mod GO111MODULE=off CGO_ENABLED=0 GOROOT=$PWD/usr/lib/go-1.19 \
               usr/lib/go-1.19/bin/go build -ldflags '-s -w' -o ../serve serve.go)
            cp ../serve serve; mkdir tmp; chmod 1777 tmp"#,
        )],
        r#"{"Entrypoint": ["/serve"], "User": "65534:65534"}"#,
        &[run(&[]), run(&["one", "more"])],
    ),
    Recipe::new(
        "debian",
        "a small Debian: links in place of /bin and /lib, setuid programs, alternatives",
        &[],
        PLAIN,
        &[
            SELF,
            run(&["sh", "-c", "readlink /bin /lib; find / -xdev -perm /6000 | sort | xargs stat -c '%n %a %u:%g'"]),
            run(&["perl", "-e", "print join(' ', getpwnam('www-data')), qq(\\n); exit 9"]),
            run(&["bash", "-c", "set -o pipefail; ulimit -c; echo {1..5} | tr ' ' +; getent group mail; locale"]),
            run(&["dpkg", "--get-selections"]),
        ],
    )
    .on_debian(&[]),
    Recipe::new(
        "nginx",
        "nginx as Debian packs it; STOPSIGNAL SIGQUIT",
        &[Layer::new(
            "mkdir -p var/log/nginx var/www/html run etc/nginx/sites-enabled; echo 'hello from nginx' >var/www/html/index.html\n\
             ln -s /etc/nginx/sites-available/default etc/nginx/sites-enabled/default\n\
             ln -s /dev/stdout var/log/nginx/access.log; ln -s /dev/stderr var/log/nginx/error.log",
        )],
        r#"{"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["nginx", "-g", "daemon off;"], "ExposedPorts": {"80/tcp": {}},
            "StopSignal": "SIGQUIT"}"#,
        &[
            SELF,
            run(&["nginx", "-t"]),
            Probe::Serve {
                ask: &[
                    "bash",
                    "-c",
                    r"exec 3<>/dev/tcp/127.0.0.1/80; printf 'GET / HTTP/1.0\r\n\r\n' >&3; tail -n 1 <&3",
                ],
                answer: "hello from nginx\n",
            },
        ],
    )
    .on_debian(&["nginx-light"]),
    Recipe::new(
        "postgres",
        "PostgreSQL as its own user: initdb in a VOLUME, SQL, STOPSIGNAL SIGINT",
        &[Layer::new(
            r#"
            mkdir -p etc var/lib/postgresql/data run/postgresql usr/local/bin
            cp ../../base/etc/passwd ../../base/etc/group etc/
            echo 'postgres:x:105:105:PostgreSQL:/var/lib/postgresql:/bin/bash' >>etc/passwd
            echo 'postgres:x:105:' >>etc/group; sed -i 's/^tape:.*/&postgres/' etc/group
            chown -R 105:105 var/lib/postgresql run/postgresql; chmod 700 var/lib/postgresql/data; chmod 2775 run/postgresql
            cat >usr/local/bin/entrypoint <<'END'
#!/bin/sh
set -e
[ -s "$PGDATA/PG_VERSION" ] || initdb --auth=trust --no-sync --locale=C.UTF-8 >/dev/null
exec "$@"
END
            chmod 755 usr/local/bin/entrypoint"#,
        )],
        r#"{"Env": ["PATH=/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/bin:/bin", "PGDATA=/var/lib/postgresql/data"],
            "User": "postgres", "Entrypoint": ["entrypoint"], "Cmd": ["postgres"], "StopSignal": "SIGINT",
            "Volumes": {"/var/lib/postgresql/data": {}}, "ExposedPorts": {"5432/tcp": {}}}"#,
        &[
            SELF,
            run(&["sh", "-c", "stat -c '%a %u:%g' $PGDATA /run/postgresql; postgres --version"]),
            Probe::Serve {
                ask: &["psql", "-At", "-c", "select 1, current_user, count(*) > 50 from pg_class"],
                answer: "1|postgres|t\n",
            },
        ],
    )
    .on_debian(&["postgresql-15"]),
    Recipe::new(
        "redis",
        "Redis with a number for its USER, an entry point and a configuration",
        &[Layer::new(
            "mkdir -p srv/redis; chown 999:999 srv/redis; printf 'save \"\"\\nappendonly yes\\ndir /srv/redis\\n' >etc-redis.conf",
        )],
        r#"{"Env": ["PATH=/usr/bin:/bin"], "User": "999", "WorkingDir": "/srv/redis", "Entrypoint": ["redis-server"],
            "Cmd": ["/etc-redis.conf"], "ExposedPorts": {"6379/tcp": {}}}"#,
        &[
            Probe::Run { options: &["--entrypoint", "sh"], words: &["-c", "id -u; id -g; id -G; pwd; env | grep -v HOME | sort"] },
            run(&["--version"]),
            Probe::Serve { ask: &["sh", "-c", "redis-cli set key value >&2; redis-cli get key"], answer: "value\n" },
        ],
    )
    .on_debian(&["redis-server", "redis-tools"]),
    Recipe::new(
        "python",
        "Python with its library, byte code and a script from outside of /usr",
        &[Layer::new(
            "mkdir app; echo 'import json, os, sqlite3, ssl, sys, socket, multiprocessing as m' >app/main.py\n\
             echo 'print(json.dumps([sys.argv, os.getcwd(), os.getuid(), sqlite3.connect(\":memory:\").execute(\"select 1\").fetchone()]))' >>app/main.py\n\
             echo 'with m.Pool(2) as pool: print(pool.map(abs, [-1, -2])); ' >>app/main.py\n\
             echo 'sys.exit(4)' >>app/main.py",
        )],
        r#"{"Env": ["PATH=/usr/bin:/bin", "LANG=C.UTF-8", "PYTHONUNBUFFERED=1"], "WorkingDir": "/app", "Entrypoint": ["python3"],
            "Cmd": ["main.py"]}"#,
        &[
            run(&[]),
            run(&["-c", "import os; print(sorted(set(os.environ) - {'TERM', 'container'})); print(os.umask(0))"]),
            run(&["-c", "raise ValueError"]),
        ],
    )
    .on_debian(&["python3", "libpython3-stdlib"]),
    Recipe::new(
        "node",
        "Node.js: a JIT, threads, a server of its own",
        &[Layer::new(
            r#"
            mkdir -p srv/app; cat >srv/app/server.js <<'END'
const server = require('http').createServer((ask, answer) => answer.end(`node ${ask.url}`));
server.listen(0, '127.0.0.1', () => require('http').get({ host: '127.0.0.1', port: server.address().port, path: '/x' }, (answer) => {
  answer.on('data', (text) => console.log(String(text), process.cwd(), process.getuid(), process.argv.slice(2)));
  answer.on('end', () => { process.exitCode = 5; server.close(); });
}));
END"#,
        )],
        r#"{"Env": ["PATH=/usr/bin:/bin", "NODE_ENV=production"], "User": "www-data", "WorkingDir": "/srv/app",
            "Cmd": ["node", "server.js"]}"#,
        &[SELF, run(&[]), run(&["node", "-p", "require('crypto').createHash('sha256').update('x').digest('hex')"])],
    )
    .on_debian(&["nodejs"]),
    Recipe::new(
        "setcap",
        "iputils-ping with capabilities of its file, on a Debian with getcap",
        &[Layer::new(
            "mkdir -p usr/local/bin; cp /bin/ping usr/local/bin/ping; setcap cap_net_raw+ep usr/local/bin/ping\n\
             cp /bin/busybox usr/local/bin/many; setcap cap_net_bind_service,cap_chown=ei usr/local/bin/many\n\
             chmod 2755 usr/local/bin/many",
        )],
        PLAIN,
        &[
            run(&["getcap", "-r", "/usr/local/bin"]),
            Probe::Run { options: &["-u", "33"], words: &["sh", "-c", "ping -c1 -q 127.0.0.1 | grep -c '1 received'"] },
        ],
    )
    .on_debian(&["iputils-ping", "libcap2-bin"]),
    Recipe::new(
        "setuid",
        "setuid, setgid and sticky files and directories of many owners, FIFO and devices",
        &[Layer::new(busybox!(
            "mkdir -p x/sticky x/setgid; for mode in 4755 2755 6711 1644 0 777; do echo $mode >x/f$mode; chown $mode:$mode x/f$mode; chmod $mode x/f$mode; done\n\
             chmod 1777 x/sticky; chgrp 50 x/setgid; chmod 2775 x/setgid; mkfifo -m 640 x/fifo; chown 33:50 x/fifo\n\
             cp bin/busybox x/su; chmod 4755 x/su; cp bin/busybox x/owned; chown 33:33 x/owned; chmod 6755 x/owned\n\
             ln -s f4755 x/link; chown -h 33:50 x/link"
        ))],
        r#"{"Env": ["PATH=/bin"], "Cmd": ["sh"]}"#,
        &[
            run(&["sh", "-c", "cd /x; stat -c '%n %a %u:%g %s %F' *; touch setgid/new sticky/new; stat -c '%n %a %g' setgid/new"]),
            Probe::Run { options: &["-u", "web"], words: &["sh", "-c", "cd /x; cat f0 2>&1; cat f777; touch setgid/n 2>&1; id"] },
        ],
    ),
    Recipe::new(
        "health",
        "HEALTHCHECK, STOPSIGNAL by number, a program that says which signal ended it",
        &[Layer::new(busybox!(
            "mkdir -p srv; printf '#!/bin/sh\\ntrap \"echo usr1; exit 11\" USR1\\ntrap \"exit 12\" TERM\\ntouch /tmp/up\\n\
             while :; do sleep 0.1; done\\n' >srv/main; chmod 755 srv/main"
        ))],
        r#"{"Env": ["PATH=/bin"], "Cmd": ["/srv/main"], "StopSignal": "10",
            "Healthcheck": {"Test": ["CMD-SHELL", "test -e /tmp/up"], "Interval": 1000000000, "Timeout": 2000000000, "Retries": 2}}"#,
        &[Probe::Serve { ask: &["sh", "-c", "test -e /tmp/up && echo up"], answer: "up\n" }],
    ),
    Recipe::new(
        "entrypoint",
        "ENTRYPOINT, CMD, ENV and WORKDIR together, a working directory that no layer has, odd variables",
        &[Layer::new(busybox!(
            "printf '#!/bin/sh\\necho entry \"$#\"; for word; do echo \"[$word]\"; done; shift; pwd; env | sort; exec \"$@\"\\n' >bin/entry; chmod 755 bin/entry"
        ))],
        r#"{"Env": ["PATH=/bin", "EMPTY=", "SPACES= a  b ", "QUOTES='\"$HOME`", "EQUALS=a=b=c", "UMLAUT=grün", "LINES=1"],
            "Entrypoint": ["entry", "first word"], "Cmd": ["echo", "of the image"], "WorkingDir": "/not/there/yet"}"#,
        &[
            run(&[]),
            run(&["echo", "of the user", ""]),
            Probe::Run { options: &["--entrypoint", "pwd"], words: &[] },
            Probe::Run { options: &["--entrypoint", ""], words: &["echo", "without"] },
            Probe::Run { options: &["-e", "EMPTY=full", "-e", "SPACES", "-w", "/bin"], words: &["./true"] },
            Probe::Run { options: &["-e", "PATH=/nowhere", "--entrypoint", "sh"], words: &["-c", "exit 0"] },
        ],
    ),
    Recipe::new(
        "many-layers",
        "35 layers that write, replace, remove and link in the same directories",
        &[
            Layer::new(busybox!("mkdir -p d/all e; echo base >d/file; for i in 1 2 3 4 5 6 7 8 9; do echo $i >d/all/base$i; done")),
            Layer {
                script: "mkdir -p d/all d/own$N; echo $N >d/file; echo $N >d/all/$N; echo $N >d/own$N/x; ln d/own$N/x d/own$N/y\n\
                         touch d/all/.wh.$((N - 1)) d/all/.wh.base$((N % 10)); mkdir -p e; ln -s ../d/file e/l$N\n\
                         [ $((N % 7)) != 3 ] || touch e/.wh..wh..opq",
                packing: Packing::Gzip,
                times: 34,
            },
        ],
        r#"{"Env": ["PATH=/bin"], "Cmd": ["sh"]}"#,
        &[SELF, run(&["sh", "-c", "cat /d/file; find /d /e | sort | xargs stat -c '%n %F'; find /d /e | wc -l"])],
    ),
    Recipe::new(
        "packings",
        "layers in zstd, gzip and no compression in one image, one of them empty",
        &[
            Layer::new(busybox!("mkdir big; seq 400000 >big/numbers")).packed(Packing::Zstd),
            Layer::new("mkdir big; seq 100000 | gzip >big/packed; truncate -s 40M big/hole; echo end >>big/hole").packed(Packing::Tar),
            Layer::new("mkdir big; echo gzip >big/gzip").packed(Packing::Gzip),
            Layer::new(":").packed(Packing::Gzip),
            Layer::new("mkdir big; echo zstd >big/zstd; touch big/.wh.packed").packed(Packing::Zstd),
        ],
        r#"{"Env": ["PATH=/bin"], "Cmd": ["sh"]}"#,
        &[run(&["sh", "-c", "cd /big; ls -l | awk '{print $1, $5, $9}'; sha256sum *"])],
    ),
    Recipe::new(
        "names",
        "names with blanks, line ends, quotes, backslashes, bytes that are not UTF-8, 255 bytes, paths of 2,000",
        &[Layer::new(busybox!(
            r"mkdir odd; cd odd; echo 1 >'a b'; echo 2 >'-rf'; echo 3 >'*'; echo 4 >'back\slash'; echo 5 >'new
line'; echo 6 >'quote'\''s'; echo 7 >'tab	x'; echo 8 >grün; echo 9 >.hidden; echo 10 >'a.wh.b'; echo 11 >'...' 
            echo 12 >'a:b,c=d'; echo 13 >'%s'; echo 14 >' '; echo 15 >'~'; ln -s '../a b	c' 'odd link'; ln 'a b' 'hard
link'
            echo 16 >$(printf '%0255d' 0); echo 17 >\\134; mkdir 'dir '; echo 18 >'dir /.a'
            echo 19 >日本語; ln -s $(printf 'x%.0s' $(seq 3000)) long-target
            mkdir deep; cd deep; for i in 1 2 3 4 5 6 7 8; do mkdir $(printf '%0200d' $i); cd $(printf '%0200d' $i); echo $i >file; done"
        ))],
        r#"{"Env": ["PATH=/bin"], "Cmd": ["sh"]}"#,
        &[run(&["sh", "-c", "cd /odd; find . -print0 | sort -z | od -c | sha256sum; find . -type f -print0 | sort -z | xargs -0 cat"])],
    ),
    Recipe::new(
        "bytes",
        "names of bytes that are no UTF-8, in GNU tar's own form and in pax headers",
        &[Layer::new(busybox!(
            r#"mkdir raw; echo 1 >raw/$(printf 'latin\374'); echo 2 >raw/$(printf '\377\376\200'); mkdir raw/$(printf 'd\351r')
            echo 3 >raw/$(printf 'd\351r')/x; ln -s $(printf 'latin\374') raw/link; ln raw/$(printf 'latin\374') raw/$(printf 'h\344rt')
            echo 4 >raw/$(printf '\001\002\177')"#
        ))],
        r#"{"Env": ["PATH=/bin"], "Cmd": ["sh"]}"#,
        &[run(&["sh", "-c", "cd /raw; find . -print0 | sort -z | od -c; cat link"])],
    ),
    Recipe::new(
        "symlinks",
        "upper layers that write through links of lower ones: relative, absolute, upwards, in chains",
        &[
            Layer::new(
                "mkdir -p usr/bin usr/lib run opt/v1/etc srv; ln -s usr/bin bin; ln -s /usr/lib lib; mkdir -p var; ln -s /run var/run\n\
                 ln -s ../../../run var/up; ln -s v1 opt/current; ln -s /opt/current/etc etc; cp /bin/busybox usr/bin/\n\
                 for name in $(usr/bin/busybox --list); do [ $name = busybox ] || ln -s busybox usr/bin/$name; done\n\
                 echo 'root:x:0:0:root:/root:/bin/sh' >opt/v1/etc/passwd; echo 'root:x:0:' >opt/v1/etc/group\n\
                 echo 'app:x:77:77::/srv:/bin/sh' >>opt/v1/etc/passwd; ln -s loop2 loop1; ln -s loop1 loop2; ln -s nowhere dangling",
            ),
            // A tar without entries for the directories on its way: what is a link below stays one.
            Layer::new(
                "mkdir -p bin lib var/run etc opt/current; echo '#!/bin/sh' >bin/new; echo 'echo new' >>bin/new; chmod 755 bin/new\n\
                 echo lib >lib/new; echo run >var/run/new; echo etc >etc/new; touch etc/.wh.group; echo here >opt/current/here\n\
                 find . ! -type d >../only",
            ),
            // And one that puts directories in their place.
            Layer::new("mkdir -p var/up; echo own >var/up/own; mkdir dangling; echo x >dangling/x"),
        ],
        r#"{"Env": ["PATH=/bin"], "User": "77", "Cmd": ["new"]}"#,
        // Podman's storage puts directories in the place of such links, so its containers have no shell.
        &[],
    ),
];
