import Foundation
import Testing

extension EndToEnd {
    /// Point 8: what a host lacks is said together with what to do about it.
    @Suite struct Hosts {
        /// Commands that want KVM and nothing else.
        static let commands = [
            ["run", "--engine", "kvm", "--guest", "hello"], ["record", "--engine", "kvm", "--guest", "hello", "-o", "no.vmrr"],
        ]

        /// A mount namespace whose /dev is what `script` makes of an empty folder.
        static func dev(_ script: String, as user: [String] = []) -> [String] {
            let words = "mount -t tmpfs -o mode=755 tmpfs /dev && \(script) || exit 99; exec \"$@\""
            return ["unshare", "-m", "bash", "-c", words, "bash"] + user
        }

        private func lacks(_ command: [String], in world: [String], _ words: [String]) throws {
            let output = try Vmrr.run(command, around: world)
            #expect(output.status == 69, "\(output)")
            #expect(words.contains { output.errors.contains($0) }, "\(output)")
            #expect(output.errors.split(separator: "\n").count == 1, "\(output)")
            #expect(output.stdout.isEmpty, "\(output)")
            #expect(!FileManager.default.fileExists(atPath: Folder.current("no.vmrr")))
        }

        @Test(.needsRoot, arguments: commands) func withoutKVM(_ command: [String]) throws {
            try lacks(command, in: Self.dev("true"), ["modprobe"])
        }

        @Test(.needsRoot, arguments: commands) func withoutPermission(_ command: [String]) throws {
            // The binary must be where another user can read it; its folder may be closed to others.
            let world = Self.dev("mknod -m 600 /dev/kvm c 10 232", as: ["setpriv", "--reuid=65534", "--clear-groups"])
            let probe = try Child.run(world + [Vmrr.binary, "--version"], in: "/", deadline: 20)
            guard probe.status == 0 else {
                return print("SKIPPED: another user can't start \(Vmrr.binary): \(probe.errors)")
            }
            chmod(Folder.current.path, 0o777)
            try lacks(command, in: world, ["kvm", "group"])
            try lacks(command, in: world, ["usermod", "adduser", "group"])
        }

        @Test(.needsRoot) func withAnotherFileInItsPlace() throws {
            let output = try Vmrr.run(["doctor"], around: Self.dev("touch /dev/kvm"))
            #expect(output.status == 69, "\(output)")
        }

        @Test(.needsRoot) func doctorSaysWhatIsMissingAndWhatIsThere() throws {
            let output = try Vmrr.run(["doctor"], around: Self.dev("true"))
            #expect(output.status == 69 && output.text.contains("modprobe") && output.text.contains("soft engine"), "\(output)")
            let report = try Vmrr.run(["doctor", "--json"], around: Self.dev("true"))
            #expect(report.status == 69 && report.json["kvm"].bool == false, "\(report)")
            #expect(report.json["instructions_per_second"]["soft"].double ?? 0 > 1e6, "\(report)")
        }

        /// Without a word about an engine, the one that is there runs the guest, and that is said in one line.
        @Test(.needsRoot) func theSoftEngineTakesOver() throws {
            let world = Self.dev("true")
            let ran = try Vmrr.run(["run", "--guest", "hello", "--serial", "none"], around: world)
            #expect(ran.status == 0 && ran.errors.contains("soft engine"), "\(ran)")
            #expect(ran.errors.split(separator: "\n").count == 2, "one line more than the result's: \(ran)")
            let trace = try record(.builtIn("ticker", "ticks=50"), around: world)
            #expect(trace.status == 0 && trace.report["engine"].string == "soft", "\(trace.output)")
            for command in [["replay", trace.path], ["verify", trace.path], ["state", trace.path, "--at", "20"]] {
                let output = try Vmrr.run(command, around: world)
                #expect(output.status == 0, "\(output)")
            }
        }

        @Test(.enabled("this host has KVM") { KVM.obstacle != nil }, arguments: commands)
        func asTheyAre(_ command: [String]) throws {
            let output = try Vmrr.run(command)
            #expect(output.status == 69 && output.errors.contains("kvm"), "\(output)")
        }

        @Test(.needsRoot) func guestsNeedNoKVM() throws {
            #expect(try Vmrr.run(["guests"], around: Self.dev("true")).status == 0)
        }

        @Test(.needsRoot, .needsKVM) func tracesAreReadWithoutKVM() throws {
            let trace = try record(.builtIn("hello"))
            #expect(try Vmrr.run(["info", trace.path], around: Self.dev("true")).status == 0)
            #expect(try Vmrr.run(["events", trace.path], around: Self.dev("true")).status == 0)
            let output = try Vmrr.run(["replay", trace.path, "--engine", "kvm"], around: Self.dev("true"))
            #expect(output.status == 69 && output.errors.contains("modprobe"), "\(output)")
        }
    }

    /// Point 9: traces recorded long ago replay.
    @Suite struct GoldenTraces {
        static let folder = Vmrr.root.appendingPathComponent("traces").path
        static let names = ((try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? [])
            .filter { $0.hasSuffix(".vmrr") }.sorted()

        @Test func areOfFourGuestsAndSmall() throws {
            let guests = try Set(Self.names.map { try Vmrr.run(["info", "\(Self.folder)/\($0)", "--json"]).json["guest"].string })
            #expect(guests.count >= 4, "\(Self.folder) has \(Self.names)")
            let bytes = Self.names.reduce(0) { sum, name in
                let attributes = try? FileManager.default.attributesOfItem(atPath: "\(Self.folder)/\(name)")
                return sum + (attributes?[.size] as? Int ?? 0)
            }
            #expect(bytes <= 1 << 20)
        }

        @Test(.needsKVM, arguments: names) func replay(_ name: String) throws {
            let path = "\(Self.folder)/\(name)"
            let info = try Vmrr.run(["info", path, "--json"])
            #expect(info.status == 0, "\(info)")
            let output = try Vmrr.run(["replay", path, "--json"], deadline: 120)
            if output.status == 69 { return print("SKIPPED: \(name) can't replay on this host: \(output.errors)") }
            #expect(output.status == (info.json["guest_failed"].bool == true ? 10 : 0), "\(output)")
            #expect(output.json["diverged"].isNull, "\(output)")
            for key in ["exits", "state_digest", "memory_digest"] {
                #expect(output.json[key] == info.json[key], "\(output)")
            }
            #expect(output.json["state_digest"].string != nil)
        }
    }
}
