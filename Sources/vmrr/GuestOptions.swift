import ArgumentParser
import CKVM
import Foundation
import Recorder
import VMCore

/// Which machine to run: the same options for every command that starts one.
struct GuestOptions: ParsableArguments {
    @Option(help: "A built-in guest; 'vmrr guests' lists them.")
    var guest: String?

    @Option(help: ArgumentHelp("A flat real-mode image, loaded and started at ADDR.", valueName: "file@addr"))
    var flat: String?

    @Option(help: ArgumentHelp("A kernel: a Linux bzImage, an ELF file with a PVH note (vmlinux), or a multiboot one.", valueName: "file"))
    var kernel: String?

    @Option(help: ArgumentHelp("How a bzImage is entered: in 64-bit mode (linux64) or in real mode (linux16), which kernels "
        + "without a 64-bit entry point need; auto chooses.", valueName: "auto|linux64|linux16"))
    var boot: LinuxBootProtocol = .automatic

    @Option(help: ArgumentHelp("The initial RAM disk; of a multiboot kernel, its first module.", valueName: "file"))
    var initrd: String?

    @Option(help: ArgumentHelp("A further module, with the string the kernel gets along with it. May be repeated.",
                               valueName: "file[=args]"))
    var module: [String] = []

    @Option(help: ArgumentHelp("The guest's command line. Linux gets console=ttyS0 with it unless it names a console; "
        + "without --append also panic=-1, which makes a panic end the run.", valueName: "text"))
    var append: String?

    @Option(help: ArgumentHelp("RAM, such as 64M or 1G. Default: 32M for built-in guests, 512M for Linux, 256M for others.",
                               valueName: "size"))
    var memory: String?

    @Option(help: ArgumentHelp("The processor that the guest sees: "
        + CPUModel.names.map { "\($0.name) (\($0.note))" }.joined(separator: "; ") + ".", valueName: "model"))
    var cpu: String = "auto"

    @OptionGroup var engine: EngineOption

    @Option(help: ArgumentHelp("In the soft engine: whose ways the processor has in what the manuals leave undefined, such as some "
        + "flags. A recording replays under a KVM on a processor of the same ways; with amd, intel or qemu it is the same "
        + "on each host. Default: those of the processor under KVM here, amd where there is no KVM.",
        valueName: "host|amd|intel|qemu"))
    var processor: Processor = .host

    enum Processor: String, CaseIterable, ExpressibleByArgument {
        case host, amd, intel, qemu
    }

    @Option(help: ArgumentHelp("hide: no timestamp counter in CPUID; trap: replace RDTSC and RDTSCP in the loaded image "
        + "by recorded port reads; pass: the host's counter, unrecorded; record: with --engine soft, and its default, each read "
        + "is recorded.", valueName: "hide|trap|pass|record"))
    var timestamps: TimestampPolicy?

    @Flag(help: "Accept that replay may diverge: needed for --timestamps pass.")
    var allowNondeterminism = false

    @Option(help: ArgumentHelp("Adds a device: testdev, the test ports of QEMU's pc-testdev.", valueName: "testdev"))
    var device: [String] = []

    @Option(help: ArgumentHelp("When the guest resets the machine: exit ends the run; restart boots it again, a recording "
        + "into a further trace NAME-2.vmrr.", valueName: "exit|restart"))
    var onReboot: OnReboot = .exit

    enum OnReboot: String, ExpressibleByArgument {
        case exit, restart
    }

    @OptionGroup var world: WorldOptions

    @Option(help: ArgumentHelp("What the real-time clock shows at the start: seconds since 1970 UTC, or now.",
                               valueName: "now|seconds"))
    var rtc: String = "now"

    /// The guest in a word, for file names and `info`.
    var name: String {
        if let guest { return guest }
        let path = kernel ?? flat.map { String($0.prefix { $0 != "@" }) } ?? "guest"
        return URL(fileURLWithPath: path).deletingPathExtension().lastPathComponent
    }

    func machine() throws -> MachineConfiguration {
        guard [guest, flat, kernel].compactMap({ $0 }).count == 1 else {
            throw UsageError("name one guest: --guest NAME, --kernel FILE or --flat FILE@ADDR")
        }
        guard CPUModel.names.contains(where: { $0.name == cpu }) else {
            throw UsageError("there is no CPU model '\(cpu)': choose \(CPUModel.names.map(\.name).joined(separator: ", "))")
        }
        if kernel == nil {
            let unused = initrd != nil ? "--initrd" : module.isEmpty ? nil : "--module"
            if let unused { throw UsageError("\(unused) goes with --kernel: only a boot loader passes modules") }
            if flat != nil, append != nil { throw UsageError("--append goes with --kernel or --guest: a flat image gets no command line") }
        }
        if let other = device.first(where: { $0 != "testdev" }) {
            throw UsageError("there is no device '\(other)': testdev is the one that can be added")
        }
        var configuration = try image()
        configuration.cpuModel = cpu
        configuration.testDevice = device.contains("testdev")
        if let timestamps { configuration.timestamps = timestamps }
        configuration.profile = ProcessorProfile.Known(rawValue: processor.rawValue).map { ProcessorProfile(of: $0) }
        return configuration
    }

    private func image() throws -> MachineConfiguration {
        let clock: Int64
        if rtc == "now" {
            clock = Int64(Date().timeIntervalSince1970)
        } else if let seconds = Int64(rtc), (0...4_102_444_800).contains(seconds) {
            clock = seconds
        } else {
            throw UsageError("--rtc takes now or seconds since 1970, up to the year 2099, not '\(rtc)'")
        }
        let bytes = try memory.map(Self.parseSize)
        if let guest {
            guard let found = BuiltInGuest.named(guest) else {
                throw UsageError("there is no built-in guest '\(guest)': vmrr guests lists them")
            }
            var configuration = MachineConfiguration(image: found.guestImage(commandLine: append ?? ""),
                                                     memoryBytes: bytes ?? BuiltInGuest.memoryBytes, wallClockStart: clock)
            configuration.timestamps = found.timestamps
            return configuration
        }
        if let flat {
            guard let at = flat.lastIndex(of: "@"), let address = Self.parseAddress(flat[flat.index(after: at)...]) else {
                throw UsageError("--flat takes FILE@ADDR, such as boot.bin@0x7c00, not '\(flat)'")
            }
            let image = GuestImage.flat(try Self.readFile(String(flat[..<at])), at: .init(address))
            return MachineConfiguration(image: image, memoryBytes: bytes ?? 256 << 20, wallClockStart: clock)
        }
        let image = try naming { try kernelImage(Self.readFile(kernel ?? "")) }
        let standard: UInt64 = if case .multiboot = image { 256 << 20 } else { 512 << 20 }
        return MachineConfiguration(image: image, memoryBytes: bytes ?? standard, wallClockStart: clock)
    }

    private func kernelImage(_ kernel: [UInt8]) throws -> GuestImage {
        // All files are read before the kernel is looked at: a name that is wrong is said first.
        let disk = try initrd.map(Self.readFile)
        let modules = try module.map { text in
            let parts = text.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            let file = String(parts[0])
            return BootModule(content: try Self.readFile(file), commandLine: parts.count > 1 ? "\(file) \(parts[1])" : file)
        }
        let format = try KernelFormat(of: kernel)
        switch format {
        case .linux, .pvh:
            guard module.isEmpty else { throw UsageError("--module goes with a multiboot kernel: Linux takes one --initrd") }
            let guest = LinuxGuest(kernel: kernel, commandLine: linuxCommandLine, initrd: disk,
                                   bootProtocol: boot)
            return if case .pvh = format { .pvh(guest) } else { .linux(guest) }
        case .multiboot:
            var all = modules
            if let disk, let initrd { all.insert(BootModule(content: disk, commandLine: initrd), at: 0) }
            return .multiboot(kernel, commandLine: append ?? "", modules: all)
        }
    }

    private var linuxCommandLine: String {
        guard let append else { return "console=ttyS0 panic=-1" }
        let namesConsole = append.split(separator: " ").contains { $0.hasPrefix("console=") }
        return namesConsole ? append : append.isEmpty ? "console=ttyS0" : "\(append) console=ttyS0"
    }

    /// Runs `body`; what is wrong with the image is said with its name.
    func naming<T>(_ body: () throws -> T) throws -> T {
        do {
            return try body()
        } catch let error as BootError {
            guard let file = kernel ?? flat else { throw error }
            throw BootError(description: "\(file): \(error)", isUsage: error.isUsage)
        }
    }

    static func readFile(_ path: String) throws -> [UInt8] {
        let descriptor = ckvm_open(path, O_RDONLY)
        guard descriptor >= 0 else { throw UsageError("can't read \(path): \(String(cString: strerror(ckvm_errno())))") }
        defer { close(descriptor) }
        var content: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 1 << 20)
        while true {
            let count = read(descriptor, &buffer, buffer.count)
            if count < 0, ckvm_errno() == EINTR { continue }
            guard count >= 0 else { throw UsageError("can't read \(path): \(String(cString: strerror(ckvm_errno())))") }
            if count == 0 { return content }
            content += buffer[..<count]
            guard content.count <= 1 << 31 else { throw UsageError("\(path) is larger than 2 GiB") }
        }
    }

    static func parseAddress(_ text: some StringProtocol) -> UInt64? {
        text.hasPrefix("0x") || text.hasPrefix("0X") ? UInt64(text.dropFirst(2), radix: 16) : UInt64(text)
    }

    static func parseSize(_ text: String) throws -> UInt64 {
        let units: [(String, UInt64)] = [
            ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30), ("", 1),
        ]
        for (suffix, factor) in units where text.hasSuffix(suffix) {
            guard let number = UInt64(text.dropLast(suffix.count)) else { continue }
            let (bytes, overflow) = number.multipliedReportingOverflow(by: factor)
            guard !overflow, MemoryLayoutMap.allowed.contains(bytes) else { break }
            return bytes
        }
        throw UsageError("a size between 1M and 32G is expected, such as 64M or 1G, not '\(text)'")
    }
}

extension TimestampPolicy: ExpressibleByArgument {}
extension LinuxBootProtocol: ExpressibleByArgument {}
