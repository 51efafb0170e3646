import Foundation
import Testing

/// This host's /dev/kvm, as the tests see it.
enum KVM {
    /// Why it can't be used; nil where it can.
    static let obstacle: String? = {
        let descriptor = open("/dev/kvm", O_RDWR | O_CLOEXEC)
        guard descriptor >= 0 else { return "/dev/kvm: \(String(cString: strerror(errno)))" }
        close(descriptor)
        return nil
    }()

    static let doctor: JSON = (try? Vmrr.run(["doctor", "--json"]).json) ?? JSON(nil)

    /// Whether interrupts can enter kernel code between exits.
    static var canStopBetweenExits: Bool { doctor["capabilities"]["breakpoint_kernel"].bool == true }

    private static let lock = NSLock()
    nonisolated(unsafe) private static var skipped = 0

    /// Tests and suites that were skipped so far.
    static var skips: Int { lock.withLock { skipped } }

    static func admit() -> Bool {
        if obstacle == nil { return true }
        lock.withLock { skipped += 1 }
        return false
    }
}

extension Trait where Self == ConditionTrait {
    /// Skips, with the reason, where there is no KVM.
    static var needsKVM: Self {
        .enabled("SKIPPED: needs KVM, and \(KVM.obstacle ?? "has it")") { KVM.admit() }
    }

    /// Skips, with the reason, where a step needs the super-user (mounts, device nodes).
    static var needsRoot: Self {
        .enabled("SKIPPED: needs root, to make mounts in a namespace of its own") { geteuid() == 0 }
    }
}

@Suite struct HostOfTheTests {
    /// Runs everywhere, so that nobody takes a run without KVM for a full one.
    @Test func isNamed() throws {
        guard let obstacle = KVM.obstacle else { return print("KVM: usable, no test was skipped for it") }
        print("KVM: NOT USABLE, \(obstacle): \(KVM.skips) tests and suites of EndToEndTests were SKIPPED")
    }

    @Test func hasTheBinary() {
        #expect(FileManager.default.isExecutableFile(atPath: Vmrr.binary), "\(Vmrr.Missing())")
    }
}
