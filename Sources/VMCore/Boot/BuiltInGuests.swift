import Guests

/// A guest that comes with the program: a small kernel with a check of its own.
public struct BuiltInGuest: Sendable {
    public var name: String
    public var summary: String
    /// The words of its command line with their defaults.
    public var parameters: String
    public var timestamps = TimestampPolicy.hide
    /// Where a flat real-mode image is loaded; nil for multiboot images.
    public var flatAddress: GuestPhysicalAddress?
    private var image: @Sendable () -> guest_image

    /// Where the images that aren't flat begin, as their multiboot headers say.
    public static let loadAddress = GuestPhysicalAddress(0x10_0000)

    /// RAM that all of them are content with, in bytes.
    public static let memoryBytes: UInt64 = 32 << 20

    public var bytes: [UInt8] {
        let image = image()
        return [UInt8](UnsafeBufferPointer(start: image.start, count: image.end - image.start))
    }

    /// A name of an address in the image.
    public struct Symbol: Sendable {
        public var name: String
        public var address: GuestPhysicalAddress
        /// In bytes; 0 for code.
        public var size: UInt64
    }

    /// The variables, and the places in the code that have a name for debuggers.
    public var symbols: [Symbol] {
        let image = image()
        var rest = [UInt8](UnsafeBufferPointer(start: image.symbols_start, count: image.symbols_end - image.symbols_start))[...]
        var symbols: [Symbol] = []
        func number() -> UInt64 {
            defer { rest = rest.dropFirst(4) }
            return rest.prefix(4).reversed().reduce(0) { $0 << 8 | UInt64($1) }
        }
        while rest.count > 8 {
            let (address, size) = (number(), number())
            let name = rest.prefix { $0 != 0 }
            rest = rest.dropFirst(name.count + 1)
            symbols.append(Symbol(name: String(decoding: name, as: UTF8.self), address: .init(address), size: size))
        }
        return symbols
    }

    public func guestImage(commandLine: String) -> GuestImage {
        if let flatAddress { return .flat(bytes, at: flatAddress) }
        return .multiboot(bytes, commandLine: commandLine, modules: [])
    }

    public static func named(_ name: String) -> BuiltInGuest? { all.first { $0.name == name } }

    public static let all: [BuiltInGuest] = [
        .init(name: "hello", summary: "prints a line on the serial port and the debug console", parameters: "",
              image: guest_hello),
        .init(name: "echo", summary: "echoes serial input by interrupt until Ctrl-D or the line quit", parameters: "",
              image: guest_echo),
        .init(name: "ticker", summary: "sleeps in HLT, woken by the PIT", parameters: "hz=1000 ticks=1000",
              image: guest_ticker),
        .init(name: "spin", summary: "computes without exits while the PIT interrupts", parameters: "hz=250 ticks=1200",
              image: guest_spin),
        .init(name: "lost-update", summary: "a race of main loop and interrupt handler that fails in one run of seven",
              parameters: "hz=1000 ticks=1200 work=15000 check=64", image: guest_lost_update),
        .init(name: "clocks", summary: "folds TSC, PM timer, PIT and RTC reads into a checksum",
              parameters: "rounds=20000 tsc", timestamps: .trap, image: guest_clocks),
        .init(name: "strings", summary: "REP string instructions over ports, page boundaries and holes",
              parameters: "rounds=3", image: guest_strings),
        .init(name: "churn", summary: "dirties a seeded pattern of pages and verifies it",
              parameters: "seed=1 pages=256 rounds=200 span=4096", image: guest_churn),
        .init(name: "user", summary: "ring 3 with system calls, page faults and exceptions",
              parameters: "hz=1000 rounds=2000 syscall=0|1", image: guest_user),
        .init(name: "smc", summary: "self-modifying code in 32-bit and 64-bit mode", parameters: "rounds=5000",
              image: guest_smc),
        .init(name: "nested-irq", summary: "APIC timer, PIT and self-IPIs that interrupt each other's handlers",
              parameters: "hz=500 timer-hz=700 ticks=1500", image: guest_nested_irq),
        .init(name: "nmi", summary: "NMIs by IPI and by the PIT, and their blocking", parameters: "ipis=200 hz=1000 ticks=400",
              image: guest_nmi),
        .init(name: "fpu", summary: "x87 and SSE arithmetic under interrupts", parameters: "hz=1000 ticks=1000",
              image: guest_fpu),
        .init(name: "paging", summary: "page tables rebuilt in all paging modes", parameters: "rounds=500 modes=4",
              image: guest_paging),
        .init(name: "triple", summary: "ends in a triple fault", parameters: "", image: guest_triple),
        .init(name: "realmode", summary: "a boot sector: real-mode interrupts from the PIT", parameters: "",
              flatAddress: .init(0x7C00), image: guest_realmode),
    ]
}
