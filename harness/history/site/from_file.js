/* Opened from a file, a page may not request its data: then it comes from data.js beside this. */
(function ($) {
    "use strict";
    if (window.location.protocol !== "file:") {
        return;
    }
    document.write('<script src="offline/data.js"><\/script>');
    $.ajaxTransport("+*", function (options) {
        return {
            send: function (headers, complete) {
                var path = decodeURIComponent(options.url.split("?")[0]);
                var known = Object.prototype.hasOwnProperty.call(window.asvFiles, path);
                setTimeout(function () {
                    if (known) {
                        complete(200, "OK", {text: window.asvFiles[path]});
                    } else {
                        complete(404, "Not Found");
                    }
                }, 0);
            },
            abort: function () {}
        };
    });
}(jQuery));
