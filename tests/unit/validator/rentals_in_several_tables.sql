BEGIN TRANSACTION;
CREATE TABLE event (
        id INTEGER PRIMARY KEY, hotkey TEXT NOT NULL, at REAL NOT NULL, block INTEGER NOT NULL,
        kind TEXT NOT NULL, detail TEXT NOT NULL
    );
INSERT INTO "event" VALUES(1,'gone',1700000000.0,100,'rented','through us');
INSERT INTO "event" VALUES(2,'shown',1700000000.0,100,'rented','through 5FKfUifqZNFuy7PxkHHBQtA5ywsvzsqaF3yjqPyY6mtZwTS3');
INSERT INTO "event" VALUES(3,'unseen',1700000000.0,100,'rented','through 5FKfUifqZNFuy7PxkHHBQtA5ywsvzsqaF3yjqPyY6mtZwTS3');
INSERT INTO "event" VALUES(4,'lapsed',1700000000.0,100,'rented','through 5FKfUifqZNFuy7PxkHHBQtA5ywsvzsqaF3yjqPyY6mtZwTS3');
INSERT INTO "event" VALUES(5,'down',1700000000.0,100,'rented','through us');
INSERT INTO "event" VALUES(6,'up',1700000000.0,100,'rented','through us');
INSERT INTO "event" VALUES(7,'spent',1700000000.0,100,'rented','through 5FKfUifqZNFuy7PxkHHBQtA5ywsvzsqaF3yjqPyY6mtZwTS3');
INSERT INTO "event" VALUES(8,'changed',1700000000.0,100,'rented','through us');
INSERT INTO "event" VALUES(9,'changed',1700003600.0,400,'hardware_changed','GPUs were 2 x NVIDIA L4, now 1 x NVIDIA L4');
INSERT INTO "event" VALUES(10,'spent',1700003600.0,400,'hardware_changed','GPUs were 2 x NVIDIA L4, now 1 x NVIDIA L4');
INSERT INTO "event" VALUES(11,'down',1700004212.0,451,'free','');
INSERT INTO "event" VALUES(12,'lapsed',1700004212.0,451,'free','');
INSERT INTO "event" VALUES(13,'spent',1700004212.0,451,'free','');
CREATE TABLE leased_machine (
        hotkey TEXT PRIMARY KEY, host_key TEXT NOT NULL, at REAL NOT NULL, specs TEXT NOT NULL,
        differs_since INTEGER, change TEXT
    );
INSERT INTO "leased_machine" VALUES('up','SHA256:daKIwNaJjF97BUWQhFl4qCo615/M49Q/9op1AeWpHuk',1700000000.0,'{"cpu":{"count":8,"frequency":3000.0},"gpu":{"count":2,"capacity":46068,"details":[{"name":"NVIDIA L4","capacity":23034},{"name":"NVIDIA L4","capacity":23034}],"graphics_speed":0,"memory_speed":0},"hard_disk":{"total":100,"used":0,"free":100},"ram":{"total":68719476736,"available":0,"used":0,"free":0,"swap_total":0,"swap_used":0,"swap_free":0},"has_docker":false,"version":0}',NULL,NULL);
INSERT INTO "leased_machine" VALUES('gone','SHA256:KDu53u8C5oQ6v7U476HspwgBvYpwHD+YGR4SNJYzkkc',1700000000.0,'{"cpu":{"count":8,"frequency":3000.0},"gpu":{"count":2,"capacity":46068,"details":[{"name":"NVIDIA L4","capacity":23034},{"name":"NVIDIA L4","capacity":23034}],"graphics_speed":0,"memory_speed":0},"hard_disk":{"total":100,"used":0,"free":100},"ram":{"total":68719476736,"available":0,"used":0,"free":0,"swap_total":0,"swap_used":0,"swap_free":0},"has_docker":false,"version":0}',NULL,NULL);
INSERT INTO "leased_machine" VALUES('lapsed','SHA256:lrFOCcWyyJYQB16lYi2a2nQ7smrznnrBc10zhQG1yIM',1700000000.0,'{"cpu":{"count":8,"frequency":3000.0},"gpu":{"count":2,"capacity":46068,"details":[{"name":"NVIDIA L4","capacity":23034},{"name":"NVIDIA L4","capacity":23034}],"graphics_speed":0,"memory_speed":0},"hard_disk":{"total":100,"used":0,"free":100},"ram":{"total":68719476736,"available":0,"used":0,"free":0,"swap_total":0,"swap_used":0,"swap_free":0},"has_docker":false,"version":0,"receipt":{"validator":"5FKfUifqZNFuy7PxkHHBQtA5ywsvzsqaF3yjqPyY6mtZwTS3","miner":"lapsed","host_key":"SHA256:lrFOCcWyyJYQB16lYi2a2nQ7smrznnrBc10zhQG1yIM","port":4444,"until":1700518400,"signature":"0x24437b6e1cd982c8ba5eacc2021ae17ed7d4c7d6d292384ceea6a288dbe7681dc05b06adcdd8e08a1417d10a5ecab3352d0322f121ee08c92bdaf26888c58a84"}}',NULL,NULL);
INSERT INTO "leased_machine" VALUES('changed','SHA256:1n4ulEmUSWyNjsdu7Qz58JZ5RI1YS1Mr6/lBhSo39e0',1700000000.0,'{"cpu":{"count":8,"frequency":3000.0},"gpu":{"count":2,"capacity":46068,"details":[{"name":"NVIDIA L4","capacity":23034},{"name":"NVIDIA L4","capacity":23034}],"graphics_speed":0,"memory_speed":0},"hard_disk":{"total":100,"used":0,"free":100},"ram":{"total":68719476736,"available":0,"used":0,"free":0,"swap_total":0,"swap_used":0,"swap_free":0},"has_docker":false,"version":0}',250,'GPUs were 2 x NVIDIA L4, now 1 x NVIDIA L4');
INSERT INTO "leased_machine" VALUES('spent','SHA256:JwXYP6e8MunWT7qazj4L5i4Br0zSIn7QDlOMjZRLddY',1700000000.0,'{"cpu":{"count":8,"frequency":3000.0},"gpu":{"count":2,"capacity":46068,"details":[{"name":"NVIDIA L4","capacity":23034},{"name":"NVIDIA L4","capacity":23034}],"graphics_speed":0,"memory_speed":0},"hard_disk":{"total":100,"used":0,"free":100},"ram":{"total":68719476736,"available":0,"used":0,"free":0,"swap_total":0,"swap_used":0,"swap_free":0},"has_docker":false,"version":0,"receipt":{"validator":"5FKfUifqZNFuy7PxkHHBQtA5ywsvzsqaF3yjqPyY6mtZwTS3","miner":"spent","host_key":"SHA256:JwXYP6e8MunWT7qazj4L5i4Br0zSIn7QDlOMjZRLddY","port":4444,"until":1700518400,"signature":"0xfe0699664385c6ac48ec5947a656b7fe2f50bcdd45303eeb08fb0ac38a303d721a39998bbcfb44262d716f7547db6ee45fb917223bbf417a28edaecfde07438e"}}',250,'GPUs were 2 x NVIDIA L4, now 1 x NVIDIA L4');
INSERT INTO "leased_machine" VALUES('down','SHA256:kIrsRRLYD/T++xlwiZCR6d6Oc0s2uP23Z4533AkvaVk',1700000000.0,'{"cpu":{"count":8,"frequency":3000.0},"gpu":{"count":2,"capacity":46068,"details":[{"name":"NVIDIA L4","capacity":23034},{"name":"NVIDIA L4","capacity":23034}],"graphics_speed":0,"memory_speed":0},"hard_disk":{"total":100,"used":0,"free":100},"ram":{"total":68719476736,"available":0,"used":0,"free":0,"swap_total":0,"swap_used":0,"swap_free":0},"has_docker":false,"version":0}',400,NULL);
INSERT INTO "leased_machine" VALUES('shown','SHA256:uq9TYipR2XUjXydih73BtkqkZAx3FCy8oHaHfZ6saBU',1700000000.0,'{"cpu":{"count":8,"frequency":3000.0},"gpu":{"count":2,"capacity":46068,"details":[{"name":"NVIDIA L4","capacity":23034},{"name":"NVIDIA L4","capacity":23034}],"graphics_speed":0,"memory_speed":0},"hard_disk":{"total":100,"used":0,"free":100},"ram":{"total":68719476736,"available":0,"used":0,"free":0,"swap_total":0,"swap_used":0,"swap_free":0},"has_docker":false,"version":0,"receipt":{"validator":"5FKfUifqZNFuy7PxkHHBQtA5ywsvzsqaF3yjqPyY6mtZwTS3","miner":"shown","host_key":"SHA256:uq9TYipR2XUjXydih73BtkqkZAx3FCy8oHaHfZ6saBU","port":4444,"until":1700518400,"signature":"0x2e85cf377fdac3e538ff1c96cb61694e5e26072d5a07c9a1cfca8813b0369c2496e23e17dad10548ff7aee2fbad156d2d17242d8c2bf525a7aed57322a4de98f"}}',400,NULL);
CREATE TABLE notice (
        id INTEGER PRIMARY KEY, notice_id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, channel TEXT NOT NULL,
        hotkey TEXT NOT NULL, at REAL NOT NULL, rental TEXT NOT NULL, details TEXT NOT NULL,
        tries INTEGER NOT NULL DEFAULT 0, next_at REAL NOT NULL
    );
INSERT INTO "notice" VALUES(1,'39455060f7884ee099bb3f15ec7f2da7','OFFLINE','status','down',1700004824.0,'SHA256:kIrsRRLYD/T++xlwiZCR6d6Oc0s2uP23Z4533AkvaVk','the machine no longer answers with its host key',0,1700004824.0);
CREATE TABLE notice_rental (
        rental TEXT PRIMARY KEY, hotkey TEXT NOT NULL, misses INTEGER NOT NULL, told_offline INTEGER NOT NULL
    );
INSERT INTO "notice_rental" VALUES('SHA256:daKIwNaJjF97BUWQhFl4qCo615/M49Q/9op1AeWpHuk','up',0,0);
INSERT INTO "notice_rental" VALUES('SHA256:kIrsRRLYD/T++xlwiZCR6d6Oc0s2uP23Z4533AkvaVk','down',3,1);
INSERT INTO "notice_rental" VALUES('SHA256:1n4ulEmUSWyNjsdu7Qz58JZ5RI1YS1Mr6/lBhSo39e0','changed',0,0);
INSERT INTO "notice_rental" VALUES('SHA256:KDu53u8C5oQ6v7U476HspwgBvYpwHD+YGR4SNJYzkkc','gone',0,0);
CREATE TABLE schema_version (component TEXT PRIMARY KEY, version INTEGER NOT NULL);
INSERT INTO "schema_version" VALUES('validator',3);
INSERT INTO "schema_version" VALUES('notices',1);
CREATE TABLE score (
        hotkey TEXT PRIMARY KEY, uid INTEGER NOT NULL, at REAL NOT NULL, block INTEGER NOT NULL,
        total REAL NOT NULL, reason TEXT NOT NULL, breakdown TEXT NOT NULL
    );
CREATE TABLE specs (
        hotkey TEXT PRIMARY KEY, at REAL NOT NULL, block INTEGER NOT NULL,
        reason TEXT NOT NULL, specs TEXT, detail TEXT NOT NULL
    );
INSERT INTO "specs" VALUES('up',1700000000.0,100,'ok','{"cpu":{"count":8,"frequency":3000.0},"gpu":{"count":2,"capacity":46068,"details":[{"name":"NVIDIA L4","capacity":23034},{"name":"NVIDIA L4","capacity":23034}],"graphics_speed":0,"memory_speed":0},"hard_disk":{"total":100,"used":0,"free":100},"ram":{"total":68719476736,"available":0,"used":0,"free":0,"swap_total":0,"swap_used":0,"swap_free":0},"has_docker":false,"version":0}','');
INSERT INTO "specs" VALUES('down',1700003600.0,400,'ok','{"cpu":{"count":8,"frequency":3000.0},"gpu":{"count":1,"capacity":23034,"details":[{"name":"NVIDIA L4","capacity":23034}],"graphics_speed":0,"memory_speed":0},"hard_disk":{"total":100,"used":0,"free":100},"ram":{"total":68719476736,"available":0,"used":0,"free":0,"swap_total":0,"swap_used":0,"swap_free":0},"has_docker":false,"version":0}','');
INSERT INTO "specs" VALUES('changed',1700003600.0,400,'ok','{"cpu":{"count":8,"frequency":3000.0},"gpu":{"count":1,"capacity":23034,"details":[{"name":"NVIDIA L4","capacity":23034}],"graphics_speed":0,"memory_speed":0},"hard_disk":{"total":100,"used":0,"free":100},"ram":{"total":68719476736,"available":0,"used":0,"free":0,"swap_total":0,"swap_used":0,"swap_free":0},"has_docker":false,"version":0}','');
INSERT INTO "specs" VALUES('gone',1700000000.0,100,'ok','{"cpu":{"count":8,"frequency":3000.0},"gpu":{"count":2,"capacity":46068,"details":[{"name":"NVIDIA L4","capacity":23034},{"name":"NVIDIA L4","capacity":23034}],"graphics_speed":0,"memory_speed":0},"hard_disk":{"total":100,"used":0,"free":100},"ram":{"total":68719476736,"available":0,"used":0,"free":0,"swap_total":0,"swap_used":0,"swap_free":0},"has_docker":false,"version":0}','');
INSERT INTO "specs" VALUES('shown',1700003600.0,400,'ok','{"cpu":{"count":8,"frequency":3000.0},"gpu":{"count":1,"capacity":23034,"details":[{"name":"NVIDIA L4","capacity":23034}],"graphics_speed":0,"memory_speed":0},"hard_disk":{"total":100,"used":0,"free":100},"ram":{"total":68719476736,"available":0,"used":0,"free":0,"swap_total":0,"swap_used":0,"swap_free":0},"has_docker":false,"version":0,"receipt":{"validator":"5FKfUifqZNFuy7PxkHHBQtA5ywsvzsqaF3yjqPyY6mtZwTS3","miner":"shown","host_key":"SHA256:uq9TYipR2XUjXydih73BtkqkZAx3FCy8oHaHfZ6saBU","port":4444,"until":1700518400,"signature":"0x2e85cf377fdac3e538ff1c96cb61694e5e26072d5a07c9a1cfca8813b0369c2496e23e17dad10548ff7aee2fbad156d2d17242d8c2bf525a7aed57322a4de98f"}}','');
INSERT INTO "specs" VALUES('lapsed',1700000000.0,100,'ok','{"cpu":{"count":8,"frequency":3000.0},"gpu":{"count":2,"capacity":46068,"details":[{"name":"NVIDIA L4","capacity":23034},{"name":"NVIDIA L4","capacity":23034}],"graphics_speed":0,"memory_speed":0},"hard_disk":{"total":100,"used":0,"free":100},"ram":{"total":68719476736,"available":0,"used":0,"free":0,"swap_total":0,"swap_used":0,"swap_free":0},"has_docker":false,"version":0,"receipt":{"validator":"5FKfUifqZNFuy7PxkHHBQtA5ywsvzsqaF3yjqPyY6mtZwTS3","miner":"lapsed","host_key":"SHA256:lrFOCcWyyJYQB16lYi2a2nQ7smrznnrBc10zhQG1yIM","port":4444,"until":1700518400,"signature":"0x24437b6e1cd982c8ba5eacc2021ae17ed7d4c7d6d292384ceea6a288dbe7681dc05b06adcdd8e08a1417d10a5ecab3352d0322f121ee08c92bdaf26888c58a84"}}','');
INSERT INTO "specs" VALUES('unseen',1700000000.0,100,'ok','{"cpu":{"count":8,"frequency":3000.0},"gpu":{"count":2,"capacity":46068,"details":[{"name":"NVIDIA L4","capacity":23034},{"name":"NVIDIA L4","capacity":23034}],"graphics_speed":0,"memory_speed":0},"hard_disk":{"total":100,"used":0,"free":100},"ram":{"total":68719476736,"available":0,"used":0,"free":0,"swap_total":0,"swap_used":0,"swap_free":0},"has_docker":false,"version":0,"receipt":{"validator":"5FKfUifqZNFuy7PxkHHBQtA5ywsvzsqaF3yjqPyY6mtZwTS3","miner":"unseen","host_key":"SHA256:eWyYXMgtp+DLS/y0XUPIk/vSm3nnYC+3y1lbFTrvcxw","port":4444,"until":1700518400,"signature":"0x407667403b7a49684f1a2c3da927865cd1268a8d5c8ffe04725f3892d8f9111d2bc7060e19e42345fe397c7281d479a2b6516feac5fc683eb544dc0e413e6289"}}','');
INSERT INTO "specs" VALUES('spent',1700003600.0,400,'ok','{"cpu":{"count":8,"frequency":3000.0},"gpu":{"count":1,"capacity":23034,"details":[{"name":"NVIDIA L4","capacity":23034}],"graphics_speed":0,"memory_speed":0},"hard_disk":{"total":100,"used":0,"free":100},"ram":{"total":68719476736,"available":0,"used":0,"free":0,"swap_total":0,"swap_used":0,"swap_free":0},"has_docker":false,"version":0,"receipt":{"validator":"5FKfUifqZNFuy7PxkHHBQtA5ywsvzsqaF3yjqPyY6mtZwTS3","miner":"spent","host_key":"SHA256:JwXYP6e8MunWT7qazj4L5i4Br0zSIn7QDlOMjZRLddY","port":4444,"until":1700518400,"signature":"0xfe0699664385c6ac48ec5947a656b7fe2f50bcdd45303eeb08fb0ac38a303d721a39998bbcfb44262d716f7547db6ee45fb917223bbf417a28edaecfde07438e"}}','');
CREATE TABLE verdict (
        id INTEGER PRIMARY KEY, hotkey TEXT NOT NULL, at REAL NOT NULL, block INTEGER NOT NULL, seconds REAL NOT NULL,
        reason TEXT NOT NULL, claim_gpu TEXT NOT NULL, claim_count INTEGER NOT NULL,
        gpu TEXT, count INTEGER NOT NULL, tflops16 REAL, devices TEXT NOT NULL, detail TEXT NOT NULL
    );
CREATE TABLE weights_journal (
        id INTEGER PRIMARY KEY, at REAL NOT NULL, block INTEGER NOT NULL, state TEXT NOT NULL,
        weights TEXT NOT NULL, detail TEXT NOT NULL
    );
CREATE INDEX event_of_hotkey ON event (hotkey, id);
CREATE INDEX verdict_of_hotkey ON verdict (hotkey, id, reason)
    ;
COMMIT;
